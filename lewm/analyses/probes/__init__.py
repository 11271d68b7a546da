"""What analyses share: targets of a probe, the probe, predictions along recorded actions, and
scores."""
