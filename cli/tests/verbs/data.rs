//! `data …`.

use serde_json::{Value, json};

use crate::fake::{Answer, CID, Cardume, Fake, error, tar};

fn adding() -> impl Fn(&crate::fake::Asked) -> Answer + Send + Sync + 'static {
    |_| Answer::Json(200, json!({"Cid": CID, "Size": 5, "Blocks": 1, "Name": "x"}))
}

/// A node that has one folder, and files in it.
fn having() -> Fake {
    Fake::start(|asked| {
        let is_folder = asked.line.contains(&format!("/content/{CID}?"));
        let kind = if is_folder { "directory" } else { "file" };
        match asked.line.split("format=").nth(1).unwrap().split('&').next().unwrap() {
            "stat" => Answer::Json(
                200,
                json!({"Cid": CID, "Type": kind, "Size": 5, "CumulativeSize": 10, "Blocks": 2}),
            ),
            "tar" => Answer::Bytes(tar(&[("a.txt", "aaa"), ("sub/b.txt", "bb")])),
            "raw" => Answer::Bytes(b"bytes".to_vec()),
            _ => Answer::Json(
                200,
                json!({"Entries": [{"Name": "a.txt", "Cid": CID, "Size": 3, "Type": "file", "More": 1}]}),
            ),
        }
    })
}

#[test]
fn add_sends_a_files_bytes_and_prints_the_cid_last() {
    let fake = Fake::start(adding());
    let cardume = Cardume::with(&fake);
    cardume.write("a b.txt", "hello");
    let ran =
        cardume.run(&["data", "add", "a b.txt", "--cid-version", "0", "--chunk-size", "256KiB", "--wrap"]);
    assert_eq!((ran.code, ran.stdout), (0, format!("{CID}\n")), "{}", ran.stderr);
    let asked = &fake.asked()[0];
    assert_eq!(asked.line, "PUT /content?cid-version=0&chunk-size=262144&wrap=true&name=a%20b.txt");
    assert_eq!(
        (asked.content_type.as_str(), asked.body.as_slice()),
        ("application/octet-stream", &b"hello"[..])
    );
    let ran = cardume.run(&["data", "add", "a b.txt", "--only-hash", "--output", "json"]);
    assert_eq!(ran.json()["Cid"], CID);
    assert!(fake.lines()[1].contains("only-hash=true"));
}

#[test]
fn add_sends_a_folders_content_as_tar() {
    let fake = Fake::start(adding());
    let cardume = Cardume::with(&fake);
    cardume.write("folder/sub/b", vec![7; 3_000_000]);
    cardume.write("folder/a", "aaa");
    assert_eq!(cardume.run(&["data", "add", "folder"]).code, 0);
    let asked = &fake.asked()[0];
    assert_eq!(
        (asked.line.as_str(), asked.content_type.as_str()),
        ("PUT /content?name=folder", "application/x-tar")
    );
    let mut archive = tar::Archive::new(asked.body.as_slice());
    let names: Vec<(String, u64)> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.map(|entry| (entry.path().unwrap().display().to_string(), entry.size())).unwrap())
        .collect();
    let names: Vec<(&str, u64)> =
        names.iter().map(|(name, size)| (name.trim_end_matches('/'), *size)).collect();
    assert_eq!(names, [("a", 3), ("sub", 0), ("sub/b", 3_000_000)]);
}

#[test]
fn over_the_socket_the_node_reads_the_files_itself() {
    let cardume = Cardume::alone();
    std::fs::create_dir(cardume.data_dir()).unwrap();
    let fake = Fake::start_in(&cardume.data_dir(), adding());
    let path = cardume.write("f.txt", "hello").canonicalize().unwrap();
    assert_eq!(cardume.run(&["data", "add", "f.txt"]).code, 0);
    let asked = &fake.asked()[0];
    let encoded = path.to_str().unwrap().replace('/', "%2F");
    assert_eq!(asked.line, format!("PUT /content?path={encoded}&name=f.txt"));
    assert!(asked.body.is_empty());
}

#[test]
fn special_files_are_refused_by_name_and_nothing_is_added() {
    let fake = Fake::start(adding());
    let cardume = Cardume::with(&fake);
    cardume.write("folder/a", "aaa");
    let _socket = std::os::unix::net::UnixListener::bind(cardume.dir.path().join("folder/s.sock")).unwrap();
    for path in ["folder", "folder/s.sock"] {
        let ran = cardume.run(&["data", "add", path]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert!(ran.stderr.contains("s.sock") && ran.stderr.contains("socket"), "{ran:?}");
    }
    assert_eq!(cardume.run(&["data", "add", "nowhere"]).code, 1);
}

#[test]
fn get_writes_files_and_folders_where_they_belong() {
    let fake = having();
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["data", "get", CID]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert_eq!(cardume.read(&format!("{CID}/sub/b.txt")), "bb");
    assert_eq!(cardume.run(&["data", "get", CID, "--output-dir", "new/deep"]).code, 0);
    assert_eq!(cardume.read("new/deep/a.txt"), "aaa");
    let file = format!("{CID}/x y.bin");
    assert_eq!(cardume.run(&["data", "get", &file, "--output-dir", "out.bin", "--timeout", "5s"]).code, 0);
    assert_eq!(cardume.read("out.bin"), "bytes");
    assert!(fake.lines().contains(&format!("GET /content/{CID}/x%20y.bin?format=raw&timeout=5")));
    let ran = cardume.run(&["data", "get", &file, "--output-dir", "y.bin", "--output", "json"]);
    assert_eq!(ran.json(), json!({"Content": file, "OutputDir": "y.bin", "LeftOut": []}), "{ran:?}");
    let ran = cardume.run(&["data", "cat", &file, "--output", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "bytes"), "{ran:?}");
    // Without a target, the CID is the target, of a path in it, too.
    let empty = Cardume::with(&fake);
    assert_eq!(empty.run(&["data", "get", &file]).code, 0);
    assert_eq!(empty.read(CID), "bytes");
    assert!(cardume.leftovers().is_empty());
}

#[test]
fn get_overwrites_nothing_unasked() {
    let fake = having();
    let cardume = Cardume::with(&fake);
    cardume.write("target/sub/b.txt", "mine");
    cardume.write("target/other", "mine, too");
    let ran = cardume.run(&["data", "get", CID, "--output-dir", "target"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("target/sub/b.txt: it exists already") && ran.stderr.contains("--force"),
        "{ran:?}"
    );
    assert!(!cardume.dir.path().join("target/a.txt").exists());
    assert_eq!(cardume.run(&["data", "get", CID, "--output-dir", "target", "--force"]).code, 0);
    assert_eq!(
        (cardume.read("target/sub/b.txt"), cardume.read("target/other")),
        ("bb".into(), "mine, too".into())
    );
    assert!(cardume.leftovers().is_empty());
}

#[test]
fn what_breaks_off_or_is_not_there_leaves_nothing_behind() {
    for kind in ["file", "directory"] {
        let fake = Fake::start(move |asked| match asked.line.contains("format=stat") {
            true => Answer::Json(200, json!({"Type": kind})),
            false => Answer::Broken(tar(&[("a.txt", "aaa")])),
        });
        let cardume = Cardume::with(&fake);
        let ran = cardume.run(&["data", "get", CID, "--output-dir", "target"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("broke off"), "{ran:?}");
        assert!(!cardume.dir.path().join("target").exists() && cardume.leftovers().is_empty());
    }
    let fake = Fake::start(|_| error(404, "NotFound", "no peer offers it"));
    let ran = Cardume::with(&fake).run(&["data", "cat", CID]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "Error: no peer offers it\nHint: do it right\n"));
}

#[test]
fn archives_that_lead_outside_are_refused() {
    let fake = Fake::start(|asked| match asked.line.contains("format=stat") {
        true => Answer::Json(200, json!({"Type": "directory"})),
        false => {
            let mut bytes = tar(&[("aa/escape", "bad")]);
            bytes[..2].copy_from_slice(b".."); // and make its checksum right again
            let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            Answer::Bytes(bytes)
        }
    });
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["data", "get", CID, "--output-dir", "target"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("leads outside"), "{ran:?}");
    assert!(!cardume.dir.path().join("escape").exists() && cardume.leftovers().is_empty());
}

#[test]
fn cat_ls_and_stat_print_what_there_is() {
    let fake = having();
    let cardume = Cardume::with(&fake);
    assert_eq!(cardume.run(&["data", "cat", &format!("/ipfs/{CID}/a.txt")]).stdout, "bytes");
    let ran = cardume.run(&["data", "ls", CID, "--output", "json"]);
    assert_eq!(ran.json(), json!([{"Name": "a.txt", "Cid": CID, "Size": 3, "Type": "file"}]));
    assert!(cardume.run(&["data", "ls", CID]).stdout.contains("a.txt  file  3 B   bafkrei"));
    assert_eq!(
        cardume.run(&["data", "stat", CID, "--output", "json"]).json()["Type"],
        Value::from("directory")
    );
    assert!(cardume.run(&["data", "stat", CID]).stdout.contains("Type           = directory"));
}

#[test]
fn names_of_no_content_are_refused_without_asking() {
    let fake = having();
    for content in ["nonsense", "bafy", &format!("{CID}/../x")] {
        for verb in ["get", "cat", "ls", "stat"] {
            assert_eq!(Cardume::with(&fake).run(&["data", verb, content]).code, 1);
        }
    }
    assert!(fake.asked().is_empty());
}
