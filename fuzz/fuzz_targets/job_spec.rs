//! Text and canonical bytes of specs: no input may panic, hang or take much memory, and whatever is read must
//! come back from every form unchanged.
#![no_main]

use job::JobSpec;
use job::spec::{MAX_CANONICAL_BYTES, Mode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = JobSpec::from_canonical(bytes) {
        assert_eq!(spec.to_canonical(), bytes);
    }
    let Ok(document) = job::text::parse(bytes) else { return };
    let _ = JobSpec::from_document(&document, Mode::Api);
    let Ok((spec, _)) = JobSpec::from_document(&document, Mode::File) else { return };
    let _ = spec.supported();
    let canonical = spec.to_canonical();
    if canonical.len() <= MAX_CANONICAL_BYTES {
        assert_eq!(JobSpec::from_canonical(&canonical).expect("a spec's own bytes are read"), spec);
    }
    let (again, _) = JobSpec::from_api_value(&spec.to_api_json()).expect("a spec's own JSON is read");
    assert_eq!(again, spec);
});
