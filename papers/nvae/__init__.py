"""NVAE: a deep hierarchical variational autoencoder (Vahdat & Kautz, 2020)."""
