"""What the server answers, one file for each kind of thing; work in other processes is asked for, never done here."""
