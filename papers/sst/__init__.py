"""Gradient estimation with stochastic softmax tricks: Paulus et al., NeurIPS 2020."""
