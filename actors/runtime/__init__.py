"""What an actor process needs: device, environment, network, remote calls, forking and fault injection."""
