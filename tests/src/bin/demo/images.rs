//! Raw images of the user's, in file slots.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use fwtests::bins::binary;
use fwtests::world::{Slots, World};

use crate::stage::{Device, install_and_kill, refused, rests_on, show, step};

pub fn run(dir: &Path, a: &Path, b: &Path) -> anyhow::Result<()> {
    ensure!(!equal(a, b)?, "{} and {} are the same image", a.display(), b.display());
    let mut world = World::new(dir)?;

    step(1, "The vendor makes keys and a repository, and signs image A as 1.0.0");
    world.found_vendor()?;
    show(&world.release("1.0.0", a, &[])?.out);
    world.serve("published")?;
    show(&world.publish()?.out);

    step(2, "A device gets its root of trust and image A");
    // Nothing can be asked of an image that does not run here, so the check is that it is a whole image of the vendor's.
    let check = format!(
        "\n[[health.check]]\nname = \"whole-image\"\ncommand = [\"sh\", \"-c\", \
         \"cmp -s \\\"$0\\\" \\\"$1\\\" || cmp -s \\\"$0\\\" \\\"$2\\\"\", \"{{slot}}\", {:?}, {:?}]\n",
        a.display().to_string(),
        b.display().to_string()
    );
    world.configure(Slots::Files, &check)?;
    let ran = world.fwagent(&["provision", "--root", "repo/metadata/1.root.json", "--from-server"])?;
    ensure!(ran.code == 0, "provision: {}", ran.err);
    show(&ran.out);
    same(&world.path("device/slot-a.img"), a)?;

    step(
        3,
        "Image B is published as 1.1.0; the agent is killed twice in the middle, and carries on",
    );
    world.copy("published", "kept-from-1.0.0")?;
    world.release("1.1.0", b, &[])?;
    show(&world.publish()?.out);
    for event in ["downloading", "writing"] {
        let reached = install_and_kill(&world, event)?;
        show(&format!(
            "SIGKILL while {event}: {} of {} bytes",
            reached["done"], reached["total"]
        ));
        same(&world.path("device/slot-a.img"), a)?;
    }
    let agent = binary("fwagent").display().to_string();
    let command = [agent.as_str(), "--config", "device.toml", "run"];
    let mut device = Device::switch_on(&world, &command)?;
    device.wait(&world, "confirm 1.1.0", rests_on("1.1.0", "confirmed"))?;
    same(&world.path("device/slot-b.img"), b)?;

    step(
        4,
        "1.2.0 is a bad image: its check fails, so the device falls back to image B",
    );
    let bad = world.path("bad.img");
    let mut bytes = std::fs::read(b).with_context(|| b.display().to_string())?;
    bytes.push(0);
    std::fs::write(&bad, bytes)?;
    world.release("1.2.0", &bad, &[])?;
    world.publish()?;
    let status = device.wait(&world, "fall back from 1.2.0", rests_on("1.1.0", "fell-back"))?;
    show(&format!(
        "fell back because: {}",
        status["last"]["reason"].as_str().unwrap_or("?")
    ));
    device.switch_off()?;
    same(&world.path("device/slot-b.img"), b)?;

    step(
        5,
        "An old release is refused, asked for by name or by a server that replays the past",
    );
    refused(&world, &["install", "--version", "1.0.0"])?;
    world.serve("kept-from-1.0.0")?;
    refused(&world, &["check"])?;

    step(6, "What the device says of itself");
    show(&world.fwagent(&["explain"])?.out);
    println!("\nAll of it worked.");
    Ok(())
}

fn same(slot: &Path, image: &Path) -> anyhow::Result<()> {
    ensure!(equal(slot, image)?, "{} is not {}", slot.display(), image.display());
    show(&format!("{} equals {}, byte for byte", slot.display(), image.display()));
    Ok(())
}

fn equal(a: &Path, b: &Path) -> anyhow::Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let (mut first, mut second) = (open(a)?, open(b)?);
    if first.metadata()?.len() != second.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = first.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        second.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}
