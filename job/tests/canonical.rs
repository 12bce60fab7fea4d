//! The canonical form: one spec, one sequence of bytes, one CID; and nothing else is read.

use std::collections::BTreeMap;

use job::constraint::{Constraint, Operator};
use job::spec::*;
use job::{JobSpec, Resources};
use proptest::prelude::*;

const CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

fn smallest() -> JobSpec {
    let text = format!(
        "Type: batch\nTasks: [{{Engine: {{Type: wasm, Params: {{EntryModule: \"ipfs://{CID}\"}}}}}}]"
    );
    JobSpec::from_text(text.as_bytes()).expect("a valid spec")
}

#[test]
fn the_cid_of_a_spec_never_changes() {
    // Peers of other versions must agree on it: a change here is a new form.
    assert_eq!(
        smallest().spec_cid().to_string(),
        "bafyreid7l7k6wga2w3unozviaqsbncyrhb5ovo47xdcq53bvmftn776fg4"
    );
}

#[test]
fn order_and_spelling_in_the_file_do_not_matter() {
    let a = b"Type: batch\nName: x\nLabels: {a: b, c: d}\nTasks: [{Engine: {Type: docker, Params: {Image: i}}, Resources: {Memory: 1024kib}}]";
    let b = b"tasks: [{resources: {memory: 1MiB, cpu: 0.5}, engine: {params: {image: i}, type: Docker}, name: main}]\nlabels: {c: d, a: b}\nname: x\ncount: 1\nnamespace: default\ntype: batch";
    let (a, b) = (JobSpec::from_text(a).unwrap(), JobSpec::from_text(b).unwrap());
    assert_eq!((a.to_canonical(), a.spec_cid()), (b.to_canonical(), b.spec_cid()));
}

#[test]
fn bytes_that_are_nearly_a_spec_are_refused() {
    let bytes = smallest().to_canonical();
    assert!(JobSpec::from_canonical(&bytes).is_ok());
    let mut trailing = bytes.clone();
    trailing.push(0);
    assert!(matches!(JobSpec::from_canonical(&trailing), Err(CanonicalError::Decode(_))));
    for cut in 0..bytes.len() {
        assert!(JobSpec::from_canonical(&bytes[..cut]).is_err());
    }
    let large = vec![0x80; MAX_CANONICAL_BYTES + 1];
    assert!(matches!(JobSpec::from_canonical(&large), Err(CanonicalError::TooLarge(_))));
    let newer = b"\xa2\x63job\xa1\x61x\x01\x64form\x02";
    assert!(matches!(JobSpec::from_canonical(newer), Err(CanonicalError::Form(2))));
}

#[test]
fn invalid_specs_are_refused_though_they_decode() {
    let mut spec = smallest();
    spec.count = 0;
    assert!(matches!(JobSpec::from_canonical(&spec.to_canonical()), Err(CanonicalError::Invalid(_))));
    let mut spec = smallest();
    spec.task.inputs[0].target = "/../etc".to_owned();
    assert!(matches!(JobSpec::from_canonical(&spec.to_canonical()), Err(CanonicalError::Invalid(_))));
}

#[test]
fn decoding_small_bytes_cannot_take_much_memory() {
    // Lists of the smallest items, nested and flat, at the size limit.
    for byte in [0x80, 0x60, 0xa0, 0x00, 0x9f, 0x81, 0xd8, 0xff] {
        assert!(JobSpec::from_canonical(&vec![byte; MAX_CANONICAL_BYTES]).is_err());
    }
    // A text and a list that claim four exabytes.
    assert!(JobSpec::from_canonical(b"\xa1\x63job\x7b\x40\0\0\0\0\0\0\0").is_err());
    assert!(JobSpec::from_canonical(b"\xa1\x63job\xa1\x6bconstraints\x9b\x40\0\0\0\0\0\0\0").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_valid_spec_survives_both_forms(spec in specs()) {
        prop_assert!(spec.validate().is_ok(), "{}", spec.validate().unwrap_err());
        let bytes = spec.to_canonical();
        let back = JobSpec::from_canonical(&bytes).unwrap();
        prop_assert_eq!(&back, &spec);
        prop_assert_eq!(back.to_canonical(), bytes);
        let (back, warnings) = JobSpec::from_api_value(&spec.to_api_json()).unwrap();
        prop_assert_eq!(back, spec);
        prop_assert!(warnings.is_empty());
    }

    #[test]
    fn a_changed_byte_gives_another_spec_or_none(spec in specs(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = spec.to_canonical();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = JobSpec::from_canonical(&bytes) {
            prop_assert_eq!(read.to_canonical(), bytes);
        }
    }
}

fn specs() -> impl Strategy<Value = JobSpec> {
    let head = ("[a-z é-]{0,12}", prop::sample::select(JobType::ALL), any::<i32>(), 1u32..=MAX_COUNT);
    let maps =
        (constraints(), texts("[a-z.]{0,6}", "[ -~é]{0,9}"), texts("[a-z][a-z0-9]{0,5}", "[a-z0-9]{0,5}"));
    (head, maps, tasks()).prop_map(
        |((name, job_type, priority, count), (constraints, meta, labels), task)| {
            let everywhere = matches!(job_type, JobType::Ops | JobType::Daemon);
            JobSpec {
                name,
                namespace: "default".to_owned(),
                job_type,
                priority,
                count: if everywhere { 0 } else { count },
                constraints,
                meta,
                labels,
                task,
            }
        },
    )
}

fn tasks() -> impl Strategy<Value = Task> {
    let amounts = (1u64..100_000, 1u64..(4 << 30), any::<u64>(), 0u64..9);
    let rest = (timeouts(), 2u32..=100, any::<(bool, bool)>(), networks(), results());
    (engines(), sources(), texts("[A-Z][A-Z0-9_]{0,6}", "[ -~é]{1,9}"), amounts, rest).prop_map(
        |(
            engine,
            sources,
            env,
            (cpu_milli, memory, disk, gpu),
            (timeouts, attempts, (never, worker), network, results),
        )| {
            let mut inputs: Vec<InputSource> = sources
                .into_iter()
                .enumerate()
                .map(|(index, source)| InputSource {
                    source,
                    alias: String::new(),
                    target: format!("/in/{index}"),
                })
                .collect();
            let module = Source::Ipfs(ContentPath::root(CID.parse().expect("a CID")));
            inputs.push(InputSource {
                source: module,
                alias: "code".to_owned(),
                target: "m.wasm".to_owned(),
            });
            let retry = if never {
                RetryPolicy { policy: Retry::Never, max_attempts: 1 }
            } else {
                RetryPolicy { policy: Retry::Default, max_attempts: attempts }
            };
            Task {
                name: "main".to_owned(),
                engine,
                publisher: if worker { Publisher::Ipfs } else { s3_publisher() },
                env,
                meta: BTreeMap::new(),
                inputs,
                results,
                resources: Resources { cpu_milli, memory, disk: disk >> 6, gpu },
                network,
                timeouts,
                retry,
                keep_on: if worker { KeepOn::Worker } else { KeepOn::Owner },
            }
        },
    )
}

fn s3_publisher() -> Publisher {
    let (bucket, key) = ("b".to_owned(), "k".to_owned());
    Publisher::S3(Box::new(S3Publisher {
        bucket,
        key,
        encoding: S3Encoding::Plain,
        ..S3Publisher::default()
    }))
}

fn engines() -> impl Strategy<Value = Engine> {
    let words = || prop::collection::vec("[ -~é]{0,8}", 0..4);
    let docker = ("[a-z:/.]{1,12}", words(), words(), prop::option::of("/[a-z]{0,5}"));
    prop_oneof![
        docker.prop_map(|(image, entrypoint, parameters, working_directory)| Engine::Docker(DockerEngine {
            image,
            entrypoint,
            parameters,
            environment: vec!["A=b".to_owned()],
            working_directory,
        })),
        words().prop_map(|parameters| Engine::Wasm(WasmEngine {
            module: "m.wasm".to_owned(),
            entrypoint: "_start".to_owned(),
            parameters,
            imports: vec![],
        })),
    ]
}

fn sources() -> impl Strategy<Value = Vec<Source>> {
    let one = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20)
            .prop_map(|bytes| Source::Inline { url: job::inline::encode(&bytes) }),
        "[a-z]{0,4}".prop_map(|path| Source::Ipfs(ContentPath { cid: CID.parse().expect("a CID"), path })),
        "[a-z]{1,4}".prop_map(|file| Source::UrlDownload { url: format!("https://h:8/{file}") }),
        (partitions(), "[a-z/*]{0,6}").prop_map(|(partition, key)| Source::S3(Box::new(S3Source {
            bucket: "b".to_owned(),
            key,
            partition,
            ..S3Source::default()
        }))),
        (any::<bool>(), prop::sample::select(CreateAs::ALL)).prop_map(|(read_write, create_as)| {
            Source::Local(LocalSource { path: "/srv".to_owned(), read_write, create_as })
        }),
    ];
    prop::collection::vec(one, 0..5)
}

fn partitions() -> impl Strategy<Value = S3Partition> {
    prop_oneof![
        Just(S3Partition::None),
        Just(S3Partition::Object),
        "[a-z(]{1,5}".prop_map(|pattern| S3Partition::Regex { pattern }),
        (0u32..9, 9u32..20).prop_map(|(start, end)| S3Partition::Substring { start, end }),
        "[0-9-]{1,9}".prop_map(|format| S3Partition::Date { format }),
    ]
}

fn networks() -> impl Strategy<Value = Network> {
    let port = PortMapping { name: "WEB".to_owned(), fixed: 8080, ..PortMapping::default() };
    prop::sample::select(NetworkType::ALL).prop_map(move |kind| Network {
        kind,
        domains: if kind == NetworkType::Http { vec![".example.org".to_owned()] } else { vec![] },
        ports: if kind == NetworkType::Host { vec![port.clone()] } else { vec![] },
    })
}

fn results() -> impl Strategy<Value = Vec<ResultPath>> {
    (0usize..4).prop_map(|count| {
        (0..count)
            .map(|index| ResultPath { name: format!("n{index}"), path: format!("/out/{index}") })
            .collect()
    })
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    (0u64..1000, 0u64..1000, any::<bool>()).prop_map(|(execution, queue, limited)| {
        let total = if limited { execution + queue + 1 } else { 0 };
        Timeouts { execution, queue, total }
    })
}

fn constraints() -> impl Strategy<Value = Vec<Constraint>> {
    let one = (prop::sample::select(Operator::ALL), "(favour_)?[a-z]{1,5}").prop_map(|(operator, key)| {
        let values: &[&str] = match operator {
            Operator::Exists | Operator::DoesNotExist => &[],
            Operator::In | Operator::NotIn => &["a", "b"],
            _ => &["7"],
        };
        Constraint { key, operator, values: values.iter().map(|value| (*value).to_owned()).collect() }
    });
    prop::collection::vec(one, 0..4)
}

fn texts(key: &'static str, value: &'static str) -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(key, value, 0..4)
}
