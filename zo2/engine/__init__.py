"""Lockstep passes over one sweep of the weights.

partition    which parameters form a unit, and where a unit is entered
placement    which units stay on the working device, and what moves in one copy
store        each unit's weights as one flat host buffer
transfer     bringing units to the working device and back
updates      what a step decides; pending: which units lack which; deferral: which go home when
weights      base + pending updates + perturbation, in the precision of the weights
lockstep     passes as coroutines that change places at unit entries
record       the first pass: execution order, and weights read outside their unit
engine       the sweep that ties these together
eager        what torch.compile leaves alone
zerocopy     losses, batches and seeds, past the copies of weights
abreast      passes side by side on a GPU; replay: whole sweeps as CUDA graphs
"""
