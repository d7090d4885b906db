"""Several replicas of the server behind Ray Serve, on one machine or a cluster. Nothing else in the code knows Ray."""
