"""The commands of ``vlkd-pl``, one file each; ``main(arguments)`` gets the command's own name first."""
