from lib.runtime.signals import end_quietly

end_quietly()  # from now on, while the script is being imported, and until the interpreter ends
