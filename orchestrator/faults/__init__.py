"""What goes wrong and what follows: losses and their limits, the watchdog, rehearsed faults."""
