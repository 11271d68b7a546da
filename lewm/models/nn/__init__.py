"""What models are made of: layers, losses, the exact engine, a decoder, and how a frozen model is
asked."""
