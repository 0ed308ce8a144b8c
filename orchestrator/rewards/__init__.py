"""How an answer gets its score: a reward model, or a Python function in killable subprocesses."""
