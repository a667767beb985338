"""Ranks of a distributed test, which start quickly: they are forked from a process with the imports."""

import multiprocessing.forkserver

import torch.multiprocessing

multiprocessing.forkserver.set_forkserver_preload(
    ["vlkd_pl.commands.train", "vlkd_pl.modules.vlkd", "vlkd_pl.datamodules.cc3m"]
)


def run_ranks(function, *arguments, num=2):
    """Calls a function of a module as ``function(rank, *arguments)`` in one process for each rank."""
    torch.multiprocessing.start_processes(function, arguments, num, start_method="forkserver")
