"""Bundles that serve many clients: the scheduler, the service around it, and front doors to that."""
