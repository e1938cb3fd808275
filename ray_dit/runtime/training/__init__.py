"""Training a model with several workers; every part can be replaced alone.

::

    task.py          what a stage hands over: its model, its batches, its losses, its results
    state.py         everything a checkpoint holds
    data.py          which samples a worker's share of a step has
    parallel.py      how the workers' models become one
    checkpointer.py  when the state is written, where to, and what is kept
    loop.py          the steps, and why they come in this order
    worker.py        one worker from start to end: puts these parts together
    board.py         progress, on its way from the workers to people
    launch.py        Ray Train: starts the workers, restarts them after failures

Global batch s is sample positions [s·B, (s+1)·B), and each worker takes its slice. What a position means
(row, noise, time step) is a pure function that belongs to the task, so the whole state of a run is its
tensors and the step. A run that finds a checkpoint goes on from it and ends in the same bits as one that was
never disturbed, for the same worker history (`formats/worker_history.py`).
"""
