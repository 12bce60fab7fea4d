//! Input sources and publishers and their parameters.

use super::error::{Sink, shown};
use super::fields::{Fields, Node};
use super::place::normal_path;
use super::{
    CreateAs, InputSource, LocalSource, Publisher, S3Encoding, S3Partition, S3Publisher, S3Source, Source,
};
use crate::nearest;

/// Reads `InputSources`.
pub(super) fn inputs(fields: &mut Fields<'_>, sink: &mut Sink) -> Vec<InputSource> {
    let nodes = fields.take("InputSources").map(|node| node.list(sink)).unwrap_or_default();
    nodes.iter().map(|node| input(node, false, sink)).collect()
}

/// Reads one input source. A module named in place may do without a target.
pub(super) fn input(node: &Node<'_>, target_optional: bool, sink: &mut Sink) -> InputSource {
    let mut fields = Fields::open(node, sink);
    let alias = fields.text("Alias", sink);
    let target = normal_path(&fields.text("Target", sink));
    if target.is_empty() && !target_optional && node.value.is_object() {
        let hint = Some("write the path at which the task finds it".to_owned());
        sink.add_broken(&fields.path_of("Target"), "input source is missing a target", hint);
    }
    let source = match fields.take("Source") {
        Some(node) => source(&node, sink),
        None if node.value.is_object() => {
            sink.add_broken(&fields.path_of("Source"), "invalid input source: missing spec type", None);
            stand_in()
        }
        None => stand_in(),
    };
    fields.close(sink);
    InputSource { source, alias, target }
}

/// A source that no check objects to.
fn stand_in() -> Source {
    Source::Inline { url: "data:,".to_owned() }
}

/// Reads a `Source`.
pub(super) fn source(node: &Node<'_>, sink: &mut Sink) -> Source {
    let mut fields = Fields::open(node, sink);
    if !node.value.is_object() {
        return stand_in();
    }
    let kind = fields.take("Type");
    let kind = match &kind {
        Some(node) => node.text(sink),
        None => Some(String::new()),
    };
    let params = fields.take("Params");
    let path = fields.path_of("Params");
    let type_path = fields.path_of("Type");
    fields.close(sink);
    let Some(kind) = kind else { return stand_in() };
    let read: fn(&mut Fields<'_>, &mut Sink) -> Source = match kind.to_lowercase().as_str() {
        "inline" => |fields, sink| Source::Inline { url: fields.text("URL", sink) },
        "ipfs" => ipfs,
        "urldownload" => |fields, sink| Source::UrlDownload { url: fields.text("URL", sink) },
        "s3" => |fields, sink| Source::S3(Box::new(s3(fields, sink))),
        "local" | "localdirectory" => local,
        _ => {
            sink.add_broken(&type_path, unknown_source(&kind), Some(nearest::hint(&kind, Source::WORDS)));
            return stand_in();
        }
    };
    let Some(params) = params else {
        sink.add_broken(&path, format!("invalid {kind} storage params: cannot be nil"), None);
        return stand_in();
    };
    let mut fields = Fields::open(&params, sink);
    let source = read(&mut fields, sink);
    fields.close(sink);
    if params.value.is_object() { source } else { stand_in() }
}

fn unknown_source(kind: &str) -> String {
    match kind.to_lowercase().as_str() {
        "" => "invalid input source: missing spec type".to_owned(),
        "s3managed" | "s3presigned" => format!("{} is a kind of result, not an input source", shown(kind)),
        _ => format!("unknown source {}", shown(kind)),
    }
}

fn ipfs(fields: &mut Fields<'_>, sink: &mut Sink) -> Source {
    let path = fields.path_of("CID");
    let text = match fields.take("CID") {
        Some(node) => match node.text(sink) {
            Some(text) => text,
            None => return stand_in(),
        },
        None => String::new(),
    };
    text.parse().map(Source::Ipfs).unwrap_or_else(|error: crate::content::ContentPathError| {
        sink.add_broken(&path, format!("invalid ipfs storage params: {error}"), None);
        stand_in()
    })
}

fn local(fields: &mut Fields<'_>, sink: &mut Sink) -> Source {
    let read_write = fields.take("ReadWrite").and_then(|node| node.boolean(sink)).unwrap_or_default();
    let create_as = fields.take("CreateAs").filter(|node| node.value.as_str() != Some(""));
    Source::Local(LocalSource {
        path: fields.text("SourcePath", sink),
        read_write,
        create_as: create_as
            .and_then(|node| node.word(CreateAs::from_word, CreateAs::WORDS, sink))
            .unwrap_or_default(),
    })
}

fn s3(fields: &mut Fields<'_>, sink: &mut Sink) -> S3Source {
    S3Source {
        bucket: fields.text("Bucket", sink),
        key: fields.text("Key", sink),
        filter: fields.text("Filter", sink),
        region: fields.text("Region", sink),
        endpoint: fields.text("Endpoint", sink),
        version_id: fields.text("VersionID", sink),
        checksum_sha256: fields.text("ChecksumSHA256", sink),
        partition: fields.take("Partition").map(|node| partition(&node, sink)).unwrap_or_default(),
    }
}

fn partition(node: &Node<'_>, sink: &mut Sink) -> S3Partition {
    let mut fields = Fields::open(node, sink);
    let kind = fields.text("Type", sink);
    let path = fields.path_of("Type");
    let found = match kind.to_lowercase().as_str() {
        "" | "none" => S3Partition::None,
        "object" => S3Partition::Object,
        "regex" => S3Partition::Regex { pattern: fields.text("Pattern", sink) },
        "substring" => S3Partition::Substring {
            start: fields.unsigned("StartIndex", u32::MAX, sink),
            end: fields.unsigned("EndIndex", u32::MAX, sink),
        },
        "date" => S3Partition::Date { format: fields.text("DateFormat", sink) },
        _ => {
            let hint = nearest::hint(&kind, S3Partition::WORDS);
            sink.add_broken(&path, format!("unsupported partition key type {}", shown(&kind)), Some(hint));
            return S3Partition::None;
        }
    };
    fields.close(sink);
    found
}

/// Reads `Publisher`.
pub(super) fn publisher(fields: &mut Fields<'_>, sink: &mut Sink) -> Publisher {
    let Some(node) = fields.take("Publisher") else { return Publisher::None };
    let mut fields = Fields::open(&node, sink);
    let kind = fields.text("Type", sink);
    let params = fields.take("Params");
    let type_path = fields.path_of("Type");
    fields.close(sink);
    let found = match kind.to_lowercase().as_str() {
        "" => Publisher::None,
        "ipfs" => Publisher::Ipfs,
        "local" => Publisher::Local,
        "noop" => Publisher::Noop,
        "s3managed" => Publisher::S3Managed,
        "s3" => return Publisher::S3(Box::new(s3_publisher(params, &node.path, sink))),
        _ => {
            let hint = nearest::hint(&kind, Publisher::WORDS);
            sink.add_broken(&type_path, format!("unknown publisher {}", shown(&kind)), Some(hint));
            return Publisher::None;
        }
    };
    // These have no parameters: whatever is there is unknown.
    if let Some(params) = params {
        Fields::open(&params, sink).close(sink);
    }
    found
}

fn s3_publisher(params: Option<Node<'_>>, path: &str, sink: &mut Sink) -> S3Publisher {
    let Some(node) = params else {
        sink.add_broken(&format!("{path}.Params"), "invalid s3 params. cannot be nil", None);
        return S3Publisher::default();
    };
    let mut fields = Fields::open(&node, sink);
    let encoding = fields.take("Encoding").filter(|node| node.value.as_str() != Some(""));
    let found = S3Publisher {
        bucket: fields.text("Bucket", sink),
        key: fields.text("Key", sink),
        endpoint: fields.text("Endpoint", sink),
        region: fields.text("Region", sink),
        encoding: encoding
            .and_then(|node| node.word(S3Encoding::from_word, S3Encoding::WORDS, sink))
            .unwrap_or_default(),
    };
    fields.close(sink);
    found
}
