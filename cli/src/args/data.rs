//! `cardume data`: content by CID.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// Verbs about content.
#[derive(Debug, Subcommand)]
pub enum Data {
    Add(Add),
    Get(Get),
    /// Write a file to stdout
    #[command(
        long_about = "Writes a file to stdout as it arrives, from this node, the swarm or IPFS.",
        after_help = "Example:\n  cardume data cat bafy…/readme.txt | head"
    )]
    Cat {
        /// What to write: CID[/PATH] of a file
        #[arg(value_name = "CID[/PATH]")]
        content: String,
        /// Give up when nobody offers it for this long
        #[arg(long, value_name = "DURATION", value_parser = crate::units::duration)]
        timeout: Option<std::time::Duration>,
        /// Form of an error; the content is written as it is.
        #[command(flatten)]
        output: Output,
    },
    /// List a folder's entries
    #[command(
        long_about = "Lists a folder's entries: name, type, size and CID.\n\nWith --output json: a list of {Name, Cid, Size, Type}."
    )]
    Ls {
        /// The folder: CID[/PATH]
        #[arg(value_name = "CID[/PATH]")]
        content: String,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    /// Show type, size and blocks of content
    Stat {
        /// The file or folder: CID[/PATH]
        #[arg(value_name = "CID[/PATH]")]
        content: String,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
}

impl Data {
    /// The form of the result.
    pub fn output(&self) -> &Output {
        match self {
            Data::Add(Add { output, .. })
            | Data::Get(Get { output, .. })
            | Data::Cat { output, .. }
            | Data::Ls { output, .. }
            | Data::Stat { output, .. } => output,
        }
    }

    /// The same, to be changed.
    pub fn output_mut(&mut self) -> &mut Output {
        match self {
            Data::Add(Add { output, .. })
            | Data::Get(Get { output, .. })
            | Data::Cat { output, .. }
            | Data::Ls { output, .. }
            | Data::Stat { output, .. } => output,
        }
    }
}

/// Add a file or folder and print its CID
#[derive(Debug, Args)]
#[command(
    long_about = "Adds a file or folder and prints the root CID on the last stdout line.\n\n\
        CIDs equal those of the newest Kubo for the same bytes and options. Symbolic links inside a folder are kept; \
        sockets, pipes and devices are refused.",
    after_help = "Examples:\n  \
        cardume data add pictures/\n  \
        cardume data add --cid-version 0 readme.txt\n  \
        cid=$(cardume data add -q big.csv)"
)]
pub struct Add {
    /// The file or folder; `-` reads a file from stdin
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// How the content is cut and named.
    #[command(flatten)]
    pub shape: Shape,

    /// Only compute the CID; store nothing
    #[arg(long, short = 'n')]
    pub only_hash: bool,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// How content is cut and named.
#[derive(Debug, Clone, Default, Args)]
pub struct Shape {
    /// Wrap a file in a folder, so that its name is kept
    #[arg(long, short = 'w', visible_alias = "wrap-with-directory")]
    pub wrap: bool,

    /// CID version, 0 or 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub cid_version: Option<u8>,

    /// Size of the chunks that files are cut into, such as 262144 or 256KiB
    #[arg(long, value_name = "SIZE", value_parser = crate::units::size)]
    pub chunk_size: Option<u64>,

    /// Name of a set of these options, such as unixfs-v1-2025 or unixfs-v0-2015
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Name chunks as raw bytes (true) or as UnixFS nodes (false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub raw_leaves: Option<bool>,
}

/// Fetch a file or folder into the file system
#[derive(Debug, Args)]
#[command(
    long_about = "Fetches a file or folder from this node, the swarm or IPFS.\n\n\
        DIR is the target itself: a file is written as DIR, a folder's entries go into it. Nothing appears there before \
        everything has arrived, and nothing that exists is overwritten without --force.",
    after_help = "Examples:\n  \
        cardume data get bafy…\n  \
        cardume data get bafy…/2026/report.pdf --output-dir report.pdf"
)]
pub struct Get {
    /// What to fetch: CID[/PATH]
    #[arg(value_name = "CID[/PATH]")]
    pub content: String,

    /// The target [default: the CID]
    #[arg(long, short = 'o', value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Overwrite files that exist
    #[arg(long, short = 'f')]
    pub force: bool,

    /// Give up when nobody offers it for this long
    #[arg(long, value_name = "DURATION", value_parser = crate::units::duration)]
    pub timeout: Option<std::time::Duration>,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}
