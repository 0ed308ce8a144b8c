"""What several tests stand on: small stages and models, hosts in network namespaces, workers that can be broken."""
