"""Shows answers of a pydantic type: the bridge asks again for one that does not fit, the loop for one that is wrong."""

import pydantic
import vercel_ai_sdk as ai
from shared import QUEUE, make_worker, run, says, scripted
from temporalio import workflow
from temporalio.client import Client

from durable import TemporalLanguageModel


class Trip(pydantic.BaseModel):
    """At the top of a module, where a worker can import it. With the sandbox on: in a module that is passed through."""

    city: str
    days: int


async def planner(llm: ai.LanguageModel, query: str) -> Trip:
    """Ask for a trip, until it is short enough."""
    messages = ai.make_messages(user=query)
    while True:
        # An answer that is no `Trip` never gets here: the activity asks again, and after three such answers the run
        # fails with "UnusableAnswer". What the type cannot say is left to the loop.
        result = await ai.stream_step(llm, messages, output_type=Trip)
        trip: Trip = result.output
        if trip.days <= 7:
            return trip
        messages += [result.messages[-1], *ai.make_messages(user=f"{trip.days} days are too long. At most 7.")]


@workflow.defn
class PlannerWorkflow:
    @workflow.run
    async def run(self, query: str) -> Trip:
        async for message in ai.run(planner, TemporalLanguageModel("scripted"), query):
            trip: Trip = message.output
        return trip


answers = iter(['{"city": "Rome", "days": "a few"}', '{"city": "Rome", "days": 14}', '{"city": "Rome", "days": 5}'])


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    answer = next(answers)
    print(f"  {messages[-1].text} -> {answer}")
    return says(answer)


async def main(client: Client) -> None:
    async with make_worker(client, PlannerWorkflow):
        trip = await client.execute_workflow(PlannerWorkflow.run, "A trip to Rome", id=QUEUE, task_queue=QUEUE)
        print(f"{type(trip).__name__}: {trip.city} for {trip.days} days")


if __name__ == "__main__":
    run(main, scripted(script))
