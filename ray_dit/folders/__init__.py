"""What stages hand each other, opened at a URI: storage and ledger below, formats for the bytes.

Knows no neural network.
"""
