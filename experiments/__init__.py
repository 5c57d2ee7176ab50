"""Questions put to the methods, each answered by short training runs on this machine: `experiments/<question>/`."""
