"""JEM: a classifier that is an energy-based model of images and labels (Grathwohl et al., 2020)."""
