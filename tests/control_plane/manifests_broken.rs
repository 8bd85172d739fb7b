//! A directory of manifests in which something is wrong.

use std::{fs, fs::OpenOptions, io::Write, time::Duration};

use dsproxy::{
    model::IpFamily,
    source::{Delta, SourceStatus, manifests::Pace},
};
use serde_json::{Value, json};

use crate::{
    manifests::{directory, documents, impatient, pace, source, started, write},
    objects::{model_service, model_slice, name, service, slice},
};

#[tokio::test]
async fn a_file_that_no_longer_parses_keeps_its_objects() {
    let directory = directory();
    let path = directory.path().join("web.yaml");
    write(&directory, "web.yaml", &[service("web", 1), slice("web-6", IpFamily::V6, &[1])]);
    let mut source = started(directory.path(), pace()).await;
    for (count, broken) in ["spec: [", "\tnot: yaml", "just text", "a: {b"].iter().enumerate() {
        fs::write(&path, broken).expect("write");
        let count = count as u64 + 1;
        source.until("the rejection", |status| status.rejected() == count).await;
        source.assert_silent();
    }
    write(&directory, "web.yaml", &[service("web", 2)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
    assert_eq!(source.slice().await, Delta::Delete(name("web-6")));
    assert_eq!(source.status.failures(), 0);
}

#[tokio::test]
async fn a_broken_file_is_counted_once_however_often_it_is_read() {
    let directory = directory();
    fs::write(directory.path().join("web.yaml"), "spec: [").expect("write");
    let mut source = started(directory.path(), impatient()).await;
    for number in 1..=5 {
        write(&directory, "other.yaml", &[service("other", number)]);
        assert_eq!(source.service().await, Delta::Apply(model_service("other", number)));
    }
    assert_eq!(source.status.rejected(), 1);
}

#[tokio::test]
async fn a_bad_document_harms_no_other_and_takes_nothing_away() {
    let directory = directory();
    let path = directory.path().join("all.yaml");
    write(&directory, "all.yaml", &[service("a", 1), service("b", 2), service("c", 3)]);
    let mut source = started(directory.path(), pace()).await;
    let text = format!("{}---\nkind: [\n---\n{}", documents(&[service("a", 11)]), documents(&[service("c", 33)]));
    fs::write(&path, text).expect("write");
    assert_eq!(source.service().await, Delta::Apply(model_service("a", 11)));
    assert_eq!(source.service().await, Delta::Apply(model_service("c", 33)));
    source.assert_silent();
    assert_eq!(source.status.rejected(), 1);

    // Which of the documents was the bad one is clear now.
    write(&directory, "all.yaml", &[service("a", 11), service("c", 33)]);
    assert_eq!(source.service().await, Delta::Delete(name("b")));
}

#[tokio::test]
async fn an_object_that_makes_no_sense_keeps_its_last_good_version() {
    let directory = directory();
    write(&directory, "all.yaml", &[service("a", 1), service("b", 2)]);
    let mut source = started(directory.path(), pace()).await;
    let nonsense = |change: &dyn Fn(&mut Value)| {
        let mut object = service("a", 9);
        change(&mut object);
        object
    };
    for (count, object) in [
        nonsense(&|object| object["spec"]["ports"][0]["port"] = json!(0)),
        nonsense(&|object| object["spec"]["ports"] = json!("eighty")),
        nonsense(&|object| object["spec"]["clusterIPs"] = json!(["127.0.0.1"])),
    ]
    .into_iter()
    .enumerate()
    {
        let number = u8::try_from(count).expect("few") + 3;
        write(&directory, "all.yaml", &[object, service("b", number)]);
        assert_eq!(source.service().await, Delta::Apply(model_service("b", number)));
        source.assert_silent();
        assert_eq!(source.status.rejected(), count as u64 + 1);
    }
    // Unlike a bad document, an object that makes no sense holds nothing else back.
    let object = nonsense(&|object| object["spec"] = json!(null));
    write(&directory, "all.yaml", &[object]);
    assert_eq!(source.service().await, Delta::Delete(name("b")));
    source.assert_silent();
    write(&directory, "all.yaml", &[]);
    assert_eq!(source.service().await, Delta::Delete(name("a")));
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_written() {
    let directory = directory();
    let path = directory.path().join("web.yaml");
    write(&directory, "web.yaml", &[service("web", 1), service("db", 2)]);
    let mut source = started(directory.path(), pace()).await;

    // Half of this is sound YAML without the second Service.
    let text = documents(&[service("web", 3), service("db", 2), service("new", 4)]);
    let (half, rest) = text.split_at(text.find("---").expect("documents"));
    let mut file = fs::File::create(&path).expect("create");
    for part in [half, rest] {
        file.write_all(part.as_bytes()).expect("write");
        file.sync_all().expect("sync");
        // Another file shows that the directory is read meanwhile.
        let number = if part == half { 5 } else { 6 };
        write(&directory, "mark.yaml", &[service("mark", number)]);
        assert_eq!(source.service().await, Delta::Apply(model_service("mark", number)));
        source.assert_silent();
    }
    drop(file);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
    assert_eq!(source.service().await, Delta::Apply(model_service("new", 4)));
    source.assert_silent();
    assert_eq!(source.status.rejected(), 0);
}

#[tokio::test]
async fn a_new_file_is_not_read_before_it_is_whole() {
    let directory = directory();
    let mut source = started(directory.path(), pace()).await;
    let path = directory.path().join("web.yaml");
    let mut file = OpenOptions::new().create_new(true).write(true).open(path).expect("create");
    let text = documents(&[service("web", 1)]);
    file.write_all(&text.as_bytes()[..text.len() / 2]).expect("write");
    write(&directory, "mark.yaml", &[service("mark", 5)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("mark", 5)));
    file.write_all(&text.as_bytes()[text.len() / 2..]).expect("write");
    drop(file);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
    assert_eq!(source.status.rejected(), 0);
}

#[tokio::test]
async fn half_a_file_whose_writer_died_keeps_the_objects() {
    let directory = directory();
    let path = directory.path().join("web.json");
    let text = service("web", 1).to_string();
    fs::write(&path, &text).expect("write");
    let mut source = started(directory.path(), pace()).await;
    fs::write(&path, &text[..text.len() / 2]).expect("write");
    source.until("the rejection", |status| status.rejected() == 1).await;
    source.assert_silent();
}

#[tokio::test]
async fn a_writer_that_sleeps_is_not_waited_for() {
    let directory = directory();
    let pace = Pace { quiet: Duration::from_millis(50), ..pace() };
    let mut source = started(directory.path(), pace).await;
    let mut file = fs::File::create(directory.path().join("web.yaml")).expect("create");
    file.write_all(documents(&[service("web", 1)]).as_bytes()).expect("write");
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
    drop(file);
}

#[tokio::test]
async fn a_directory_that_vanishes_takes_nothing_away() {
    let parent = directory();
    let path = parent.path().join("manifests");
    fs::create_dir(&path).expect("make the directory");
    let write = |number| {
        let text = documents(&[service("web", number), slice("web-4", IpFamily::V4, &[number])]);
        fs::write(path.join("web.yaml"), text).expect("write");
    };
    write(1);
    let mut source = started(&path, pace()).await;

    fs::rename(&path, parent.path().join("elsewhere")).expect("rename");
    source.until_failed_again(3).await;
    assert!(!source.status.connected());
    let error = source.status.last_error().expect("an error");
    assert!(error.contains("--manifests") && error.contains(&path.display().to_string()), "{error}");
    source.assert_silent();

    // Back as it was: nothing changed.
    fs::rename(parent.path().join("elsewhere"), &path).expect("rename");
    source.until_connected().await;
    source.assert_silent();
    assert_eq!(source.status.last_error(), None);

    // Gone, and another comes in its place, which is watched like the first.
    fs::rename(&path, parent.path().join("old")).expect("rename");
    source.until("the failure", |status| !status.connected()).await;
    fs::create_dir(parent.path().join("next")).expect("make a directory");
    let text = documents(&[service("web", 2)]);
    fs::write(parent.path().join("next/web.yaml"), text).expect("write");
    fs::rename(parent.path().join("next"), &path).expect("rename");
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
    assert_eq!(source.slice().await, Delta::Delete(name("web-4")));
    source.until_connected().await;
    write(3);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
    assert_eq!(source.slice().await, Delta::Apply(model_slice("web-4", IpFamily::V4, &[3])));
    source.assert_silent();
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_its_objects() {
    let directory = directory();
    let path = directory.path().join("web.yaml");
    write(&directory, "web.yaml", &[service("web", 1)]);
    let mut source = started(directory.path(), pace()).await;
    // Root may read anything, but nobody can read what is nowhere.
    std::os::unix::fs::symlink("nowhere", directory.path().join("link")).expect("link");
    fs::rename(directory.path().join("link"), &path).expect("rename");
    source.until_failed_again(3).await;
    let error = source.status.last_error().expect("an error");
    assert!(error.contains("web.yaml"), "{error}");
    write(&directory, "other.yaml", &[service("other", 2)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("other", 2)));
    source.assert_silent();
    fs::remove_file(&path).expect("remove");
    assert_eq!(source.service().await, Delta::Delete(name("web")));
    source.until("the recovery", SourceStatus::connected).await;
}

#[tokio::test]
async fn the_first_reading_makes_do_with_what_can_be_read() {
    let directory = directory();
    write(&directory, "good.yaml", &[service("web", 1)]);
    fs::write(directory.path().join("bad.yaml"), "kind: [").expect("write");
    let mut partly = slice("web-6", IpFamily::V6, &[1]);
    let endpoints = partly["endpoints"].as_array_mut().expect("endpoints");
    endpoints.push(json!({"addresses": ["10.1.0.1"]}));
    write(&directory, "partly.yaml", &[partly]);
    let mut source = source(directory.path(), pace());
    assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
    assert_eq!(source.snapshot_of_slices().await, [model_slice("web-6", IpFamily::V6, &[1])]);
    source.until_connected().await;
    assert_eq!(source.status.rejected(), 1);
    assert_eq!(source.status.skipped(), 1);
}
