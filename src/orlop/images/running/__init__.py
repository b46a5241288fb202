"""What a container is told: the bundle, its user, its namespaces."""
