//! The CIDs that Kubo gave to the same inputs, for three sets of options.

use std::fs;
use std::io::Write;
use std::path::Path;

use storage::store::{AddOptions, Settings, Store};
use storage::unixfs::Profile;

/// Input; `unixfs-v1-2025`; the same with 256 KiB chunks; CIDv0, leaves in nodes, 256 KiB chunks, 174 links.
const GOLDEN: [[&str; 4]; 7] = [
    [
        "seq",
        "bafybeih373jk2nmwyzpnmzpqbypvdrpakdrmvohyq7tlfexrwntulfrb5e",
        "bafybeidqf5zlpy2e46s2womt2dxoe5dn5w6ijbyfwokw3lcaq6reuthzp4",
        "QmT6wvecCypiqmPPhDHzyRmoLyAqdrrhSA66VoZYVqjwP8",
    ],
    [
        "empty",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
    ],
    [
        "one",
        "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe",
        "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe",
        "QmULKig5Fxrs2sC4qt9nNduucXfb92AFYQ6Hi3YRqDmrYC",
    ],
    [
        "mib",
        "bafkreih3xkzit57zjmsxg3cyxzdktfgeih6qevjmyybcguxd3bws7k34qm",
        "bafybeiclphklsx6bfzfb5aezogjldbkeicyyvma6wrfnielfg7haplwahy",
        "QmNVwWg6N5yixbSukgRFyXez5HdRY52RhEbg823ejW3cHn",
    ],
    [
        "mib1",
        "bafybeibzbbkz2yaod26me3umny76d53vrfzhuz4kyett2rqz74z5iumso4",
        "bafybeih4k33iext4vauwr5h4vzzwyk76m24bycrsxna75iakqf5pt62nbm",
        "QmYZ92rS1tp46qiE1YLzdZorrvWVn5MLY5tbyEFtgFY7oV",
    ],
    [
        "tree",
        "bafybeid4ruukgpp3jtis3iocnpw6nuu4xhxabieofai3esdd2jqvamzvsy",
        "bafybeid4ruukgpp3jtis3iocnpw6nuu4xhxabieofai3esdd2jqvamzvsy",
        "QmcwjCKeAcqzkExyzyBninQCRDhKDsFtVZHzYQovYZbrjE",
    ],
    [
        "big",
        "bafybeiacq3hw25cm5xbgoa2xdnvygw44hilsc5gt6l32mjwvct2ew7qvh4",
        "bafybeiacq3hw25cm5xbgoa2xdnvygw44hilsc5gt6l32mjwvct2ew7qvh4",
        "QmPxw3rEfGmkvmNzUvoBGtLSKMkA8enNruSPyr5quGTyrH",
    ],
];

fn profiles() -> [Profile; 3] {
    let chunk_bytes = 256 * 1024;
    [Profile::V1_2025, Profile { chunk_bytes, ..Profile::V1_2025 }, Profile::V0_2015]
}

#[test]
fn every_golden_cid_is_reproduced() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_inputs(dir.path());
    let store = Store::open(&dir.path().join("store"), Settings::default()).expect("opens");
    for [name, cids @ ..] in GOLDEN {
        for (profile, golden) in profiles().into_iter().zip(cids) {
            let path = dir.path().join(name);
            let hashed = AddOptions { profile, only_hash: true, ..AddOptions::default() };
            let found = store.blocking().add_path(&path, &hashed).expect("hashes").cid;
            assert_eq!(found.to_string(), golden, "{name}, {profile:?}, only hashed");
            let stored = AddOptions { profile, ..AddOptions::default() };
            let found = store.blocking().add_path(&path, &stored).expect("adds").cid;
            assert_eq!(found.to_string(), golden, "{name}, {profile:?}, stored");
        }
    }
    let verified = store.blocking().verify(false).expect("verifies");
    assert_eq!(verified.damaged, 0);
}

#[test]
fn files_from_a_stream_have_the_same_cids() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write_inputs(dir.path());
    let store = Store::open(&dir.path().join("store"), Settings::default()).expect("opens");
    for [name, cids @ ..] in GOLDEN.into_iter().take(5) {
        for (profile, golden) in profiles().into_iter().zip(cids) {
            let mut file = fs::File::open(dir.path().join(name)).expect("opens");
            let options = AddOptions { profile, ..AddOptions::default() };
            let found = store.blocking().add_reader(&mut file, None, &options).expect("adds").cid;
            assert_eq!(found.to_string(), golden, "{name}, {profile:?}");
        }
    }
}

fn write_inputs(dir: &Path) {
    let mut seq = Vec::new();
    for number in 1..=3_000_000 {
        writeln!(seq, "{number}").expect("a vector takes any bytes");
    }
    let mib: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(4096);
    write(&dir.join("seq"), &seq);
    write(&dir.join("empty"), b"");
    write(&dir.join("one"), b"x");
    write(&dir.join("mib"), &mib);
    write(&dir.join("mib1"), &[&mib[..], b"!"].concat());
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("sub/empty")).expect("creates");
    let mut random = PythonRandom::seeded(7);
    random.bytes(1100 * 1024);
    for number in 0..40 {
        write(&tree.join(format!("f{number}")), &random.bytes(number * 1000));
    }
    for number in 0..5 {
        write(&tree.join(format!("sub/g{number}")), format!("g{number}\n").as_bytes());
    }
    std::os::unix::fs::symlink("f1", tree.join("link")).expect("links");
    let big = dir.join("big");
    fs::create_dir(&big).expect("creates");
    for number in 0..6000 {
        let name = format!("name-that-is-rather-long-so-that-the-directory-shards-{number:05}");
        write(&big.join(name), number.to_string().as_bytes());
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writes");
}

/// Python's `random.Random`: the Mersenne Twister MT19937, seeded and read as Python does.
struct PythonRandom {
    state: [u32; 624],
    next: usize,
}

impl PythonRandom {
    /// `Random(seed)`, for a seed of 32 bits.
    fn seeded(seed: u32) -> Self {
        let mut state = [19_650_218_u32; 624];
        for at in 1..624 {
            let before = state[at - 1] ^ state[at - 1] >> 30;
            state[at] = before.wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        let mut at = 1;
        let mut mix = |round: usize| {
            let before = state[at - 1] ^ state[at - 1] >> 30;
            state[at] = match round {
                0..624 => (state[at] ^ before.wrapping_mul(1_664_525)).wrapping_add(seed),
                _ => (state[at] ^ before.wrapping_mul(1_566_083_941)).wrapping_sub(at as u32),
            };
            at += 1;
            if at == 624 {
                state[0] = state[623];
                at = 1;
            }
        };
        (0..624 + 623).for_each(&mut mix);
        state[0] = 1 << 31;
        PythonRandom { state, next: 624 }
    }

    fn word(&mut self) -> u32 {
        if self.next == 624 {
            for at in 0..624 {
                let joined = self.state[at] & 1 << 31 | self.state[(at + 1) % 624] & !(1 << 31);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[at] = self.state[(at + 397) % 624] ^ joined >> 1 ^ odd;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    /// `randbytes(length)`.
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 3);
        while bytes.len() < length {
            let missing = length - bytes.len();
            let word = self.word();
            let kept = if missing >= 4 { word } else { word >> (32 - 8 * missing) };
            bytes.extend(kept.to_le_bytes().iter().take(missing));
        }
        bytes
    }
}
