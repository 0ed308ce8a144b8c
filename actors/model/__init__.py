"""One model in its processes: a rank of it (worker), all ranks of it (group), what they load, run and export."""
