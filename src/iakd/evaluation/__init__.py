"""What a finished model is worth: accuracy, calibration, cost and speed."""
