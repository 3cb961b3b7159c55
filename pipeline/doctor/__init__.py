"""Whether runs will work on this machine, found out before one is started."""
