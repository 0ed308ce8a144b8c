"""What every actor process stands on: device, environment, network, remote calls, forking, injected faults."""
