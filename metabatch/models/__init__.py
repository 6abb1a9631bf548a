"""A trained member: boosters plus calibration, shared by training, evaluation and inference."""
