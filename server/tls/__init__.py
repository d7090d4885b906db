"""TLS for clients that have NAI's address built in: certificates, hosts entries and the trust store."""
