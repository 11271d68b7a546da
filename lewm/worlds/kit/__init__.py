"""What worlds share: opening them, the single environment, looks, rasters, drawing without a
screen, pushing."""
