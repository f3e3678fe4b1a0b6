//! The `quire` program: parses the command line and hands over to [`quire::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    quire::cli::main()
}
