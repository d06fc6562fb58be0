"""Settings, one fold's training, metrics and cross-validation."""
