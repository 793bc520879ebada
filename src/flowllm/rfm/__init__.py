"""Riemannian flow matching: manifolds, network, loss, training pairs, training, integration."""
