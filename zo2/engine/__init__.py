"""Lockstep passes over one sweep of the weights.

engine       owns a model's weights, and sweeps over them
sweep        one walk over the units, along a route, within a workspace of device memory
atonce       which blocks of several units passes go through without a stop within
hooks        where passes pause, on the model's modules
partition    which parameters form a unit, and where a unit is entered
record       the first pass: execution order, and weights read outside their unit
placement    which units stay on the working device, and what moves in one copy
devicememory what the device's memory is used for beside weights; threadstacks: and what need not be
driver       NVIDIA's, for streams that take little memory (streams) and for that
store        each unit's weights as one flat host buffer
resting      parameters between sweeps, which tell the engine what is asked of them
transfer     bringing units to the working device and back; lanes: by copies beside computation
zerocopy     losses, batches and seeds, past the copies of weights
updates      what a step decides; pending: which units lack which; deferral: which go home when
weights      base + pending updates + perturbation, in the precision of the weights
fused        that as one kernel for each unit (kernels), launched without delay (launching)
lockstep     passes as coroutines that change places at unit entries
modulestate  what a pass leaves on modules stays with it; threadstate: and what it leaves in torch
eager        what torch.compile leaves alone
capturing    CUDA graphs; replay: of whole sweeps, whose passes go abreast; blockgraphs: of blocks
"""
