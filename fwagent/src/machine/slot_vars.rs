//! What the variables of a boot loader say about slots: an order in which they are tried, and what each has left. The
//! same rules for U-Boot and GRUB, whose variables differ in their names only. They are those of RAUC
//! (`src/bootloaders/{uboot,grub}.c`), whose boot scripts therefore work with the agent.
//!
//! ```text
//!                 order         a slot has N attempts left     it has none
//! U-Boot          BOOT_ORDER    BOOT_<slot>_LEFT=N (hex)       BOOT_<slot>_LEFT=0
//! GRUB, N is 1    ORDER         <slot>_OK=1 <slot>_TRY=0       <slot>_OK=0, or <slot>_TRY=1
//!
//! arm         slot first in the order, with its attempts
//! confirm     the same: the loader counts every boot, and `replenish` gives back what a confirmed slot has used
//! disable     none left, and out of the order
//! loader      boots the first slot of the order that has attempts left, after it has stored that there is one less;
//!             if no slot has any, the last one of the order, which is the one confirmed longest ago
//! ```

use std::collections::BTreeMap;

use crate::machine::boot::BootView;
use crate::machine::slot::SlotId;

/// The variables do not say what they must, or cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotVarsError {
    /// Nobody has set the order; what the boot script takes instead is not known.
    #[error("variable {variable} is not set")]
    NoOrder {
        /// The variable.
        variable: &'static str,
    },
    /// A variable has a value that it cannot have.
    #[error("variable {variable} is {value:?}, which says nothing about attempts")]
    Meaningless {
        /// The variable.
        variable: String,
        /// Its value, cut to 64 characters.
        value: String,
    },
    /// More attempts than the loader can count.
    #[error("{attempts} boot attempts were asked for, and this boot loader counts to {most}")]
    Attempts {
        /// Asked for.
        attempts: u32,
        /// Possible.
        most: u32,
    },
    /// There would be nothing left to boot.
    #[error("slot {slot} is the only one in the boot order")]
    LastSlot {
        /// The slot.
        slot: SlotId,
    },
    /// What boots is named by a variable that nobody has set.
    #[error("variable {variable}, which names the slot to boot, is not set")]
    NoSlot {
        /// The variable.
        variable: String,
    },
    /// Two variables name the slot and differ.
    #[error("variable {first} names slot {first_slot} and variable {second} names slot {second_slot}")]
    Disagree {
        /// A variable.
        first: String,
        /// Its slot.
        first_slot: SlotId,
        /// Another one.
        second: String,
        /// Its slot.
        second_slot: SlotId,
    },
    /// Other partitions have taken all priorities.
    #[error("there is no priority for slot {slot} above those of partitions that are no slots")]
    NoPriority {
        /// The slot.
        slot: SlotId,
    },
    /// An environment of U-Boot.
    #[error(transparent)]
    Uboot(#[from] crate::machine::uboot_env::EnvError),
    /// An environment block of GRUB.
    #[error(transparent)]
    Grub(#[from] crate::machine::grub_env::BlockError),
}

impl SlotVarsError {
    /// A value that makes no sense.
    pub fn meaningless(variable: String, value: Option<&[u8]>) -> Self {
        let value = String::from_utf8_lossy(value.unwrap_or_default());
        Self::Meaningless {
            variable,
            value: value.chars().take(64).collect(),
        }
    }
}

/// The memory of a boot loader, and what it means. Changes happen in memory; a medium writes them as a whole.
///
/// Every method gives [`SlotVarsError`] when the memory does not say what it must, or cannot say what it is asked to.
#[allow(clippy::missing_errors_doc)]
pub trait BootVars: Clone + PartialEq {
    /// What the agent is to know, when `running` runs.
    fn view(&self, slots: &[SlotId], running: &SlotId) -> Result<BootView, SlotVarsError>;

    /// The slot that boots next; `None` on a new device.
    fn primary(&self, slots: &[SlotId]) -> Result<Option<SlotId>, SlotVarsError>;

    /// `slot` is tried next, so many times.
    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError>;

    /// `slot` is what boots from now on. Where the loader counts every boot, it gets so many attempts.
    fn confirm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError>;

    /// `slot` is not booted.
    fn disable(&mut self, slot: &SlotId) -> Result<(), SlotVarsError>;

    /// The confirmed `slot` runs: gives it back what the loader has counted.
    fn replenish(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError>;

    /// A new device: of the agent's `slots` only `slot` may be booted.
    fn create(&mut self, slots: &[SlotId], slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError>;
}

impl<V: SlotVars> BootVars for V {
    fn view(&self, slots: &[SlotId], running: &SlotId) -> Result<BootView, SlotVarsError> {
        view(self, slots, running)
    }

    fn primary(&self, slots: &[SlotId]) -> Result<Option<SlotId>, SlotVarsError> {
        primary(self, slots)
    }

    fn arm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        first(self, slot, attempts)
    }

    fn confirm(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        first(self, slot, attempts)
    }

    fn disable(&mut self, slot: &SlotId) -> Result<(), SlotVarsError> {
        disable(self, slot)
    }

    fn replenish(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        replenish(self, slot, attempts)
    }

    fn create(&mut self, slots: &[SlotId], slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        create(self, slots, slot, attempts)
    }
}

/// Variables with an order of slots.
pub trait SlotVars: Clone + PartialEq {
    /// The variable with the order.
    const ORDER: &'static str;

    /// Value of the variable with the order.
    fn order(&self) -> Option<Vec<u8>>;

    /// Sets the order.
    ///
    /// # Errors
    /// [`SlotVarsError`].
    fn set_order(&mut self, order: &str) -> Result<(), SlotVarsError>;

    /// Attempts that `slot` has left.
    ///
    /// # Errors
    /// [`SlotVarsError::Meaningless`].
    fn left(&self, slot: &SlotId) -> Result<u32, SlotVarsError>;

    /// Gives `slot` so many attempts.
    ///
    /// # Errors
    /// [`SlotVarsError`].
    fn set_left(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError>;
}

/// Names in the order; there may be some that are no slots of the agent, which keep their place.
fn order<V: SlotVars>(vars: &V) -> Result<Vec<String>, SlotVarsError> {
    let missing = SlotVarsError::NoOrder { variable: V::ORDER };
    let text = vars.order().ok_or(missing)?;
    let text = std::str::from_utf8(&text).map_err(|_| SlotVarsError::meaningless(V::ORDER.to_owned(), Some(&text)))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// What the agent is to know, when `running` runs: the slots that are tried before it are armed.
///
/// # Errors
/// [`SlotVarsError`].
pub fn view<V: SlotVars>(vars: &V, slots: &[SlotId], running: &SlotId) -> Result<BootView, SlotVarsError> {
    let mut armed = BTreeMap::new();
    for name in order(vars)?.iter().take_while(|name| *name != running.as_str()) {
        if let Some(slot) = slots.iter().find(|slot| slot.as_str() == name) {
            armed.insert(slot.clone(), vars.left(slot)?);
        }
    }
    Ok(BootView {
        booted: Some(running.clone()),
        armed,
    })
}

/// The slot that boots next; `None` when there is no order, as on a new device. There, a slot of which nothing is said
/// counts as one with attempts left, which is what boot scripts take it for.
///
/// # Errors
/// [`SlotVarsError`].
pub fn primary<V: SlotVars>(vars: &V, slots: &[SlotId]) -> Result<Option<SlotId>, SlotVarsError> {
    if vars.order().is_none() {
        return Ok(None);
    }
    for name in order(vars)? {
        if let Some(slot) = slots.iter().find(|slot| slot.as_str() == name)
            && vars.left(slot).map_or(true, |left| left > 0)
        {
            return Ok(Some(slot.clone()));
        }
    }
    Ok(None)
}

/// `slot` first, with so many attempts.
///
/// # Errors
/// [`SlotVarsError`].
pub fn first<V: SlotVars>(vars: &mut V, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
    let mut names = order(vars)?;
    names.retain(|name| name != slot.as_str());
    names.insert(0, slot.to_string());
    vars.set_left(slot, attempts)?;
    vars.set_order(&names.join(" "))
}

/// `slot` not at all.
///
/// # Errors
/// [`SlotVarsError`].
pub fn disable<V: SlotVars>(vars: &mut V, slot: &SlotId) -> Result<(), SlotVarsError> {
    let mut names = order(vars)?;
    names.retain(|name| name != slot.as_str());
    if names.is_empty() {
        return Err(SlotVarsError::LastSlot { slot: slot.clone() });
    }
    vars.set_left(slot, 0)?;
    vars.set_order(&names.join(" "))
}

/// Gives a confirmed slot back what it has used, wherever in the order it is.
///
/// # Errors
/// [`SlotVarsError`].
pub fn replenish<V: SlotVars>(vars: &mut V, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
    let mut names = order(vars)?;
    vars.set_left(slot, attempts)?;
    if names.iter().any(|name| name == slot.as_str()) {
        return Ok(());
    }
    names.push(slot.to_string());
    vars.set_order(&names.join(" "))
}

/// A new device: of the agent's `slots` only `slot` may be booted.
///
/// # Errors
/// [`SlotVarsError`].
pub fn create<V: SlotVars>(vars: &mut V, slots: &[SlotId], slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
    if vars.order().is_none() {
        vars.set_order(slot.as_str())?;
    }
    first(vars, slot, attempts)?;
    for other in slots.iter().filter(|other| *other != slot) {
        disable(vars, other)?;
    }
    Ok(())
}

impl SlotVars for crate::machine::uboot_env::Environment {
    const ORDER: &'static str = "BOOT_ORDER";

    fn order(&self) -> Option<Vec<u8>> {
        self.get(Self::ORDER).map(<[u8]>::to_vec)
    }

    fn set_order(&mut self, order: &str) -> Result<(), SlotVarsError> {
        Ok(self.set(Self::ORDER, order)?)
    }

    fn left(&self, slot: &SlotId) -> Result<u32, SlotVarsError> {
        let variable = format!("BOOT_{slot}_LEFT");
        let value = self.get(&variable);
        let digits = value.and_then(|value| std::str::from_utf8(value).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let left = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        left.ok_or_else(|| SlotVarsError::meaningless(variable, value))
    }

    fn set_left(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        Ok(self.set(&format!("BOOT_{slot}_LEFT"), &format!("{attempts:x}"))?)
    }
}

impl SlotVars for crate::machine::grub_env::Block {
    const ORDER: &'static str = "ORDER";

    fn order(&self) -> Option<Vec<u8>> {
        self.get(Self::ORDER)
    }

    fn set_order(&mut self, order: &str) -> Result<(), SlotVarsError> {
        Ok(self.set(Self::ORDER, order)?)
    }

    fn left(&self, slot: &SlotId) -> Result<u32, SlotVarsError> {
        let flag = |name: &str| {
            let variable = format!("{slot}_{name}");
            match self.get(&variable).as_deref() {
                Some(b"1") => Ok(true),
                // A slot that nobody has said anything about is not good.
                Some(b"0") | None => Ok(false),
                value => Err(SlotVarsError::meaningless(variable, value)),
            }
        };
        Ok(u32::from(flag("OK")? && !flag("TRY")?))
    }

    fn set_left(&mut self, slot: &SlotId, attempts: u32) -> Result<(), SlotVarsError> {
        if attempts > 1 {
            return Err(SlotVarsError::Attempts { attempts, most: 1 });
        }
        self.set(&format!("{slot}_OK"), &attempts.to_string())?;
        Ok(self.set(&format!("{slot}_TRY"), "0")?)
    }
}
