"""What a run needs of memory and time, told before anything is started."""
