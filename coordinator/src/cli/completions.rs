//! `synod completions`: what a shell needs to complete this command line.

use super::exit::{Exit, Failure};
use super::output::print;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

/// Arguments of `synod completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell.
    #[arg(value_parser = [clap::builder::PossibleValue::new("bash"), "zsh".into(), "fish".into()])]
    shell: String,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let shell = match args.shell.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        _ => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut super::Cli::command(), "synod", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_is_told_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            generate(shell, &mut super::super::Cli::command(), "synod", &mut script);
            let script = String::from_utf8(script).expect("text");
            for word in [
                "status",
                "dump",
                "outbox",
                "in-doubt",
                "completions",
                "unsubscribe",
                "records",
            ] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
