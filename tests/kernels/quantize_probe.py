FAULTS = ()
def probe(library):
    pass
