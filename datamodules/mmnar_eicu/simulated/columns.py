"""Columns of the raw tables, as the eICU Collaborative Research Database 2.0 ships them."""

from __future__ import annotations

# Written out in full, with the columns that no extractor reads: an extract without them is not eICU's.
_COLUMNS = {
    "patient": (
        "patientunitstayid patienthealthsystemstayid gender age ethnicity hospitalid wardid apacheadmissiondx "
        "admissionheight hospitaladmittime24 hospitaladmitoffset hospitaladmitsource hospitaldischargeyear "
        "hospitaldischargetime24 hospitaldischargeoffset hospitaldischargelocation hospitaldischargestatus "
        "unittype unitadmittime24 unitadmitsource unitvisitnumber unitstaytype admissionweight "
        "dischargeweight unitdischargetime24 unitdischargeoffset unitdischargelocation unitdischargestatus "
        "uniquepid"
    ),
    "hospital": "hospitalid numbedscategory teachingstatus region",
    "lab": (
        "labid patientunitstayid labresultoffset labtypeid labname labresult labresulttext "
        "labmeasurenamesystem labmeasurenameinterface labresultrevisedoffset"
    ),
    "vitalPeriodic": (
        "vitalperiodicid patientunitstayid observationoffset temperature sao2 heartrate respiration cvp etco2 "
        "systemicsystolic systemicdiastolic systemicmean pasystolic padiastolic pamean st1 st2 st3 icp"
    ),
    "vitalAperiodic": (
        "vitalaperiodicid patientunitstayid observationoffset noninvasivesystolic noninvasivediastolic "
        "noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri"
    ),
    "medication": (
        "medicationid patientunitstayid drugorderoffset drugstartoffset drugivadmixture drugordercancelled "
        "drugname drughiclseqno dosage routeadmin frequency loadingdose prn drugstopoffset gtc"
    ),
    "infusionDrug": (
        "infusiondrugid patientunitstayid infusionoffset drugname drugrate infusionrate drugamount "
        "volumeoffluid patientweight"
    ),
    "admissionDrug": (
        "admissiondrugid patientunitstayid drugoffset drugenteredoffset drugnotetype specialtytype usertype "
        "rxincluded writtenineicu drugname drugdosage drugunit drugadmitfrequency drughiclseqno"
    ),
    "treatment": "treatmentid patientunitstayid treatmentoffset treatmentstring activeupondischarge",
    "diagnosis": (
        "diagnosisid patientunitstayid activeupondischarge diagnosisoffset diagnosisstring icd9code diagnosispriority"
    ),
    "admissionDx": "admissiondxid patientunitstayid admitdxenteredoffset admitdxpath admitdxname admitdxtext",
    "pastHistory": (
        "pasthistoryid patientunitstayid pasthistoryoffset pasthistoryenteredoffset pasthistorynotetype "
        "pasthistorypath pasthistoryvalue pasthistoryvaluetext"
    ),
    "note": "noteid patientunitstayid noteoffset noteenteredoffset notetype notepath notevalue notetext",
    "physicalExam": (
        "physicalexamid patientunitstayid physicalexamoffset physicalexampath physicalexamvalue physicalexamtext"
    ),
    "respiratoryCare": (
        "respcareid patientunitstayid respcarestatusoffset currenthistoryseqnum airwaytype airwaysize "
        "airwayposition cuffpressure ventstartoffset ventendoffset priorventstartoffset priorventendoffset "
        "apneaparams lowexhmvlimit hiexhmvlimit lowexhtvlimit hipeakpreslimit lowpeakpreslimit "
        "hirespratelimit lowrespratelimit sighpreslimit lowironoxlimit highironoxlimit meanairwaypreslimit "
        "peeplimit cpaplimit setapneainterval setapneatv setapneaippeephigh setapnearr setapneapeakflow "
        "setapneainsptime setapneaie setapneafio2"
    ),
    "respiratoryCharting": (
        "respchartid patientunitstayid respchartoffset respchartentryoffset respcharttypecat "
        "respchartvaluelabel respchartvalue"
    ),
    "microLab": "microlabid patientunitstayid culturetakenoffset culturesite organism antibiotic sensitivitylevel",
    "carePlanGeneral": "cplgeneralid patientunitstayid activeupondischarge cplitemoffset cplgroup cplitemvalue",
    "carePlanEOL": "cpleolid patientunitstayid cpleolsaveoffset cpleoldiscussionoffset activeupondischarge",
    "apachePatientResult": (
        "apachepatientresultsid patientunitstayid physicianspeciality physicianinterventioncategory "
        "acutephysiologyscore apachescore apacheversion predictedicumortality actualicumortality "
        "predictediculos actualiculos predictedhospitalmortality actualhospitalmortality predictedhospitallos "
        "actualhospitallos preopmi preopcardiaccath ptcawithin24h unabridgedunitlos unabridgedhosplos "
        "actualventdays predventdays unabridgedactualventdays"
    ),
}
COLUMNS: dict[str, tuple[str, ...]] = {table: tuple(names.split()) for table, names in _COLUMNS.items()}
