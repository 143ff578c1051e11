"""The proof under real faults: nothing is lost, doubled, disordered or altered in silence."""
