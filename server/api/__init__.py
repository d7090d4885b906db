"""HTTP: routes, access, bodies and responses."""
