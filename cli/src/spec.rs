//! Job files and job flags, checked here before any node hears of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use job::JobSpec;
use job::spec::{Mode, SpecErrors};
use job::text::Limits;

use crate::args::run::Templates;
use crate::failure::Failure;

/// Most bytes of a job file that are read: what the API takes. The reader's own limit, which is lower, then says
/// what is too large.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// A job file, checked.
#[derive(Debug)]
pub struct JobFile {
    /// What the file is called.
    pub name: String,
    /// The text as it is submitted, templates filled.
    pub text: String,
    /// What it says.
    pub spec: JobSpec,
    /// What was ignored.
    pub warnings: Vec<String>,
}

/// Reads a job file (`-`: stdin), fills its templates and checks it.
pub fn read(path: &Path, templates: &Templates) -> Result<JobFile, Failure> {
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    let bytes = read_bytes(path, &name)?;
    let bytes = match std::str::from_utf8(&bytes) {
        Ok(text) if !templates.no_template && job::template::has_actions(text) => {
            fill(&name, text, templates)?.into_bytes()
        }
        _ => bytes,
    };
    let refused = |errors: SpecErrors| invalid(&name, &errors);
    let document = job::text::parse(&bytes).map_err(|error| refused(error.into()))?;
    let (spec, warnings) = JobSpec::from_document(&document, Mode::File).map_err(refused)?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::refused(format!("{name}: not UTF-8")))?;
    Ok(JobFile { name, text, spec, warnings })
}

/// Fails when this version cannot run the job yet.
pub fn supported(file: &JobFile) -> Result<(), Failure> {
    file.spec.supported().map_err(|errors| invalid(&file.name, &errors))
}

/// Checks a spec that was put together from flags.
pub fn check(spec: &JobSpec) -> Result<(), Failure> {
    spec.validate().and_then(|()| spec.supported()).map_err(|errors| invalid("", &errors))
}

fn read_bytes(path: &Path, name: &str) -> Result<Vec<u8>, Failure> {
    let cannot = |error: &std::io::Error| Failure::local(format!("cannot read the job {name}"), error);
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).map_err(|error| cannot(&error).hint("check the path"))?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
    };
    read.map_err(|error| cannot(&error))?;
    Ok(bytes)
}

fn fill(name: &str, text: &str, templates: &Templates) -> Result<String, Failure> {
    if text.len() > Limits::SPEC.bytes {
        return Ok(text.to_owned()); // the reader says that it is too large
    }
    let values = values(templates)?;
    job::template::fill(text, &values).map_err(|error| {
        Failure::refused(format!("{name}: cannot fill the templates: {error}"))
            .hint("give values with -V KEY=VALUE or -E REGEX, or take the file as it is with --no-template")
    })
}

/// The values of templates: matching environment variables, then what was given, which wins.
fn values(templates: &Templates) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    if let Some(pattern) = &templates.template_envs {
        let expression = if pattern == "*" { ".*" } else { pattern };
        let expression = regex_lite::Regex::new(expression).map_err(|error| {
            Failure::refused(format!("--template-envs {pattern:?} is no regular expression: {error}"))
        })?;
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        values.extend(variables.filter(|(name, _)| expression.is_match(name)));
    }
    for text in &templates.template_vars {
        let (key, value) = pair("--template-vars", text)?;
        values.insert(key, value);
    }
    Ok(values)
}

/// Reads `KEY=VALUE`.
pub fn pair(flag: &str, text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(Failure::refused(format!("{flag} {text:?} is not KEY=VALUE"))),
    }
}

/// All that is wrong with a spec, one error a line. The hint of a lone error stands by itself.
fn invalid(name: &str, errors: &SpecErrors) -> Failure {
    let prefix = if name.is_empty() { String::new() } else { format!("{name}: ") };
    let mut listed: Vec<_> = errors.iter().cloned().collect();
    let hint = match listed.as_mut_slice() {
        [only] => only.hint.take(),
        _ => None,
    };
    let mut lines: Vec<String> = listed.iter().map(|error| format!("{prefix}{error}")).collect();
    if errors.unlisted() > 0 {
        lines.push(format!("{prefix}and {} more", errors.unlisted()));
    }
    Failure::refused(lines.join("\n")).hint(hint.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "Name: hello\nType: batch\nTasks:\n  - Engine:\n      Type: wasm\n      Params:\n        EntryModule: ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku\n        Parameters: ['{{or (index . \"who\") \"all\"}}']\n";

    fn read_text(text: &str, templates: &Templates) -> Result<JobFile, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path(), templates)
    }

    #[test]
    fn templates_are_filled_before_the_file_is_read() {
        let templates = Templates { template_vars: vec!["who=you".into()], ..Templates::default() };
        let file = read_text(JOB, &templates).unwrap();
        assert!(file.text.contains("'you'") && !file.text.contains("{{"));
        assert_eq!(file.spec.name, "hello");
        let without = Templates { no_template: true, ..Templates::default() };
        assert!(read_text(JOB, &without).unwrap().text.contains("{{or"));
    }

    #[test]
    fn values_that_were_given_win_over_the_environment() {
        let templates = Templates {
            template_vars: vec!["PATH=here".into()],
            template_envs: Some("^PATH$".into()),
            ..Templates::default()
        };
        assert_eq!(values(&templates).unwrap().get("PATH").map(String::as_str), Some("here"));
        let environment = Templates { template_envs: Some("*".into()), ..Templates::default() };
        assert_eq!(values(&environment).unwrap().get("PATH"), std::env::var("PATH").ok().as_ref());
        let wrong = Templates { template_envs: Some("(".into()), ..Templates::default() };
        assert!(values(&wrong).is_err());
    }

    #[test]
    fn what_is_no_job_is_refused_with_its_reason() {
        for (text, reason) in
            [("", "empty"), ("\u{0}\u{1}", "binary"), ("Name: [", "line"), ("Typo: 1\n", "Typo")]
        {
            let failure = read_text(text, &Templates::default()).unwrap_err();
            assert_eq!(failure.exit, 1);
            assert!(failure.message.contains(reason), "{text:?}: {failure}");
        }
        let large = format!("Name: {}\n", "x".repeat(3 << 20));
        assert!(read_text(&large, &Templates::default()).unwrap_err().message.contains("too large"));
        let missing = read(Path::new("/nowhere/job.yaml"), &Templates::default()).unwrap_err();
        assert!(missing.message.contains("/nowhere/job.yaml: no such file"), "{missing}");
    }

    #[test]
    fn every_error_is_on_a_line_of_its_own_with_file_path_and_place() {
        let text = "Type: batsh\nTasks:\n  - Engine: {Type: wasm, Params: {EntryModule: ''}}\n    Resources: {CPU: x}\n";
        let failure = read_text(text, &Templates::default()).unwrap_err();
        assert!(failure.message.lines().count() >= 3, "{failure}");
        assert!(failure.message.contains("Tasks[0].Resources.CPU: "), "{failure}");
        assert!(failure.message.contains("line 4, column"), "{failure}");
    }
}
