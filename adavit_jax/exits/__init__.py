"""When to stop: confidence measures and thresholds calibrated to a budget."""
