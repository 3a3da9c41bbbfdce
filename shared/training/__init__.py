"""Training: loop, resuming, schedules, devices, processes."""
