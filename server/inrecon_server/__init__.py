"""inrecon_server: sockets, processes, files and the command line around `inrecon`."""
