//! The picture of a run.

use cluster_tests::check::{Event, Outcome, RegisterOp};
use cluster_tests::timeline::{BARS_MAX, Bar, Fault, Led, Timeline};

use crate::support::{event, refused, unknown};

/// Whether elements are closed in the order they were opened and text is escaped; how many
/// elements there are.
fn parse(svg: &str) -> Result<usize, String> {
    let (mut open, mut count, mut rest) = (Vec::new(), 0, svg);
    while let Some((text, after)) = rest.split_once('<') {
        check_text(text)?;
        let (tag, after) = after.split_once('>').ok_or("a tag without an end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let opened = open.pop();
            if opened != Some(name) {
                return Err(format!("{name} closes {opened:?}"));
            }
            continue;
        }
        count += 1;
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if attributes.matches('"').count() % 2 != 0 {
            return Err(format!("quotes in {tag}"));
        }
        check_text(attributes)?;
        if !closed {
            open.push(name);
        }
    }
    if !open.is_empty() || !rest.trim().is_empty() {
        return Err(format!("left open: {open:?}, at the end: {rest:?}"));
    }
    Ok(count)
}

fn check_text(text: &str) -> Result<(), String> {
    let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;"];
    let mut parts = text.match_indices('&');
    let escaped = parts.all(|(at, _)| known.iter().any(|known| text[at..].starts_with(known)));
    let bare = text.contains('>') || text.chars().any(|c| c.is_control() && c != '\n');
    if bare || !escaped { Err(format!("not escaped: {text:?}")) } else { Ok(()) }
}

fn picture() -> Timeline {
    let write = |value| RegisterOp::Write { key: 1, value };
    let history: [Event<RegisterOp>; 3] = [
        event(1, 0, 1_000_000_000, write(1)),
        refused(2, 500_000_000, 900_000_000, write(2)),
        unknown(7, 2_000_000_000, write(3)),
    ];
    Timeline {
        title: "kill, seed 7\nwrites & reads".to_owned(),
        operations: history.iter().map(Bar::from).collect(),
        leaders: vec![
            Led { node: 1, term: 1, from: 0, until: 1_200_000_000 },
            Led { node: 3, term: 2, from: 1_500_000_000, until: 4_000_000_000 },
        ],
        faults: vec![
            Fault { from: 1_200_000_000, until: 1_200_000_000, label: "kill -9 of 1".to_owned() },
            Fault { from: 1_250_000_000, until: 3_000_000_000, label: "cut <1> | 2,3".to_owned() },
        ],
    }
}

#[test]
fn a_run_is_drawn() {
    let svg = picture().svg();
    assert!(parse(&svg).unwrap() > 20, "{svg}");
    let shown = [
        "kill, seed 7",
        "writes &amp; reads",
        "client 7",
        "node 3",
        "node 3 leads in term 2",
        "kill -9 of 1",
        "cut &lt;1&gt; | 2,3",
        "1 done",
        "1 refused",
        "1 unknown",
        "seconds",
        "unknown: Write",
    ];
    for text in shown {
        assert!(svg.contains(text), "no {text:?} in {svg}");
    }
    assert!(!svg.contains("are drawn"), "{svg}");
}

#[test]
fn a_run_without_anything_is_drawn() {
    parse(&Timeline::default().svg()).unwrap();
}

#[test]
fn the_check_of_the_picture_can_fail() {
    for wrong in ["<a>", "<a></b>", "<a>&</a>", "<a b=\"></a>", "<a/>x", "<a>\u{1}</a>"] {
        parse(wrong).expect_err(wrong);
    }
}

#[test]
fn labels_of_all_kinds_are_escaped() {
    let mut timeline = picture();
    let nasty = "</title>&\"'<script>\u{0}\u{1b}\u{ffff} ]]> \u{10ffff}";
    timeline.title = nasty.to_owned();
    timeline.faults[0].label = nasty.to_owned();
    timeline.operations[0].label = nasty.to_owned();
    let svg = timeline.svg();
    parse(&svg).unwrap();
    assert!(!svg.contains("<script"), "{svg}");
}

#[test]
fn a_long_run_is_drawn_in_part_and_what_went_wrong_comes_first() {
    let mut timeline = picture();
    for at in 0..200_000_u64 {
        let outcome = if at % 1_000 == 0 { Outcome::Unknown } else { Outcome::Done };
        let (client, called) = ((at % 500) as u32, at * 1_000_000);
        let label = "&".repeat(1_000);
        timeline.operations.push(Bar { client, called, returned: called + 5, outcome, label });
        let label = format!("fault {at}");
        timeline.faults.push(Fault { from: called, until: called, label });
        timeline.leaders.push(Led { node: at % 300, term: at, from: called, until: called + 5 });
    }
    let svg = timeline.svg();
    parse(&svg).unwrap();
    assert!(svg.len() < 8 << 20, "{}", svg.len());
    let note = format!("{BARS_MAX} of 200003 operations are drawn");
    for text in [&note, "faults are drawn", "terms are drawn", "64 of 500 clients are drawn"] {
        assert!(svg.contains(text), "no {text:?}");
    }
    timeline.operations.iter_mut().for_each(|bar| bar.client = 1);
    assert_eq!(timeline.svg().matches("<title>unknown: ").count(), 201);
}
