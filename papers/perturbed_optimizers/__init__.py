"""Learning with differentiable perturbed optimizers: Berthet et al., NeurIPS 2020."""
