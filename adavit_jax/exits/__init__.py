"""Early exits: confidence measures and calibrated thresholds."""
