def cases(site, rng): yield from ()
